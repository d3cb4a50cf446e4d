"""Several tokens in one forward pass: what a drafter guesses, the model checks."""

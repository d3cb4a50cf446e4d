"""From messages to the text of a prompt: chat templates, rendered in a bounded sandbox."""

"""One router a file; each is served with and without the /v1 prefix."""

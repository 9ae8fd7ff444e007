"""One small plugin of every kind. A module each, so that a run imports only what it uses."""

"""The counters that balance, and every reason that is counted. Pure."""

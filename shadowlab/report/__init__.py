"""One run as one HTML page that needs no network: what happened, why, and what to do about it."""

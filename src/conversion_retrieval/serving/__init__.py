"""Candidates from the champion: for one user, for a file of requests, and over HTTP."""

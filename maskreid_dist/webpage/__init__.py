"""A page that computes embeddings and ranked lists in a browser, from files alone: no server, no network."""

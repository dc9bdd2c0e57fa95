"""What crosses the edges: the requests of clients, and the counts that money is made from."""

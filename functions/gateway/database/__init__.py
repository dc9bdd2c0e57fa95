"""The one way to the database: typed calls of the SQL functions, over PostgREST."""

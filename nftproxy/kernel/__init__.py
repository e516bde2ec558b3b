"""The edge to nf_tables: reading, writing and listening. Nothing else in the program opens it."""

"""Find candidates: catalogue arrays, embeddings, ANN indexes, sources. No asyncio, sockets, clock or global RNG."""

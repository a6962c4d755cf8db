"""Retrieval: embedders, searchers (BM25, exact, faiss), filters, and the retriever that puts them together.

Importing this package loads neither torch, faiss, scipy nor transformers; the files that need them load them when used.
"""

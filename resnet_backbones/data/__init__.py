"""Data sets and loaders. Independent of backbones and head libraries."""

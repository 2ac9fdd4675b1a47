"""Mutants of csrc: found, built into one binary, tried one by one. See ../mutants.py."""

"""Measuring an encoder: the report card, its baselines, probes and pictures."""

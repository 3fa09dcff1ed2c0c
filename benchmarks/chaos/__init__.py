"""Reliability experiments: what is promised of kills, faults, damage, late data and outages, tried on the tiny chain."""

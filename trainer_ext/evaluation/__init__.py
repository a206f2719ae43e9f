"""Figures: metrics, intervals, calibration, fusion, tables and plots."""

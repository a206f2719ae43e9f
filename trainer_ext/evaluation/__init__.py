"""From predictions to results: metrics, confidence intervals, calibration, fusion, tables and plots."""

"""The results of measurements: records, the parity check, tables, figures and the HTML page.

Pure, except for reading and writing records; never imports mlx.
"""

"""What was measured: a run's record, its correctness gate, its table and figures. Pure, but for reading and
writing records; never imports mlx.
"""

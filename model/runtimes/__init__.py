"""What computes: one module per inference runtime, behind one small port.

Each module imports its library when a predictor is loaded, never before.
"""

"""What the exercises of the notebooks are checked with: Keras itself, on inputs that cannot hide a mistake.

Each module has the number of the notebook that it serves. Each check prints one line: not attempted yet, what is still
wrong, or right.
"""

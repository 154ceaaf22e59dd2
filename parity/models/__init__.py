"""Run either model, step by step, and know how far rounding may move what it computes."""

"""A trained model for others: a diffusers folder, or programs of torch.export or ONNX, each run and compared first."""

from shadowlab.exporting.run import Written, run_export

__all__ = ["Written", "run_export"]

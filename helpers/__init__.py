"""What the notebooks need but the reader did not come for: data, devices, checkpoints, drawing. One module, one job."""

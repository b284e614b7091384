"""What is trained: config, models, the instrumented trainer, the recorder, the probe, the embedded default."""

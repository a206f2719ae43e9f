"""The parts of a training: starting checkpoints, the head, batches, masking, distillation and LoRA."""

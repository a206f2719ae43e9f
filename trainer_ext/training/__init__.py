"""What a training is made of: the model it starts from, batches, masks, distillation, adapters."""

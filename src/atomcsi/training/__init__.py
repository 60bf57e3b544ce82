"""Pretraining and finetuning of potentials, on pytorch-lightning."""

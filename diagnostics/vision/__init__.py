"""Vision-language models: how each family of them is shown images and clips.

A family is told by the model's config. It has two halves: `placeholders`, which needs no torch, writes into a rendered
prompt as many placeholder tokens as a model wants for each image or clip; `tensors` prepares the pixels.
"""

"""How each family's config and tensor names map onto the network: a file each, named after `model_type`."""

"""The network, written once, as plain torch modules named after the paper's parts."""

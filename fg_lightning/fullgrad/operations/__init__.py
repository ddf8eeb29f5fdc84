"""What torch operations do: the bias of each, and how each moves samples and places."""

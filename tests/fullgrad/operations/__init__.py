"""Operations that a network is made of, and the definition of their biases."""

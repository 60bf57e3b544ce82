"""Models of atoms: backbones behind one interface, and the heads that read energies and forces off them."""

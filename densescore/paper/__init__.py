"""What only the CVPR 2014 paper needs: source networks, actions, its tables."""

"""Network definitions: teachers, students, their features, the NetAug super-network, fake quantisation."""

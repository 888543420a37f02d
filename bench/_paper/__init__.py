"""The pipeline of ALTO v1 (Santhanam et al., EuroMLSys 2024, section 4.1) in alto, and its runs."""

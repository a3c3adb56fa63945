"""Stage ``train``: the hashing network, by UHSCM, DSCH or both."""

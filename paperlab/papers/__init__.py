"""One room a paper: what is its own. A paper never imports another one."""

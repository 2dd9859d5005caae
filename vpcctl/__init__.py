"""A firewall-first VPC controller: policies in, one atomic nftables ruleset per VPC out."""

__version__ = "0.2.0"

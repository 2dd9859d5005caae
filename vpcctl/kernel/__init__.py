"""The only place that touches Linux: namespaces, netlink, nftables, /proc."""

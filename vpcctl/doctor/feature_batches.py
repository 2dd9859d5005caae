"""What a ruleset of ours asks of nftables, feature by feature: each a batch with a table `try` that shows it."""

from __future__ import annotations

from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class Batch:
    """`text` loads where the kernel has the feature; the other fields are those of `features.Feature`."""

    name: str
    text: str
    option: str
    module: str = ""
    since: str = ""


BATCHES = (
    Batch(
        "nftables with the inet family",
        """
        table inet try {
            chain c { type filter hook forward priority filter; policy drop; }
        }
        """,
        "CONFIG_NF_TABLES_INET",
        "nf_tables",
        "3.14",
    ),
    Batch(
        "nftables with the arp family",
        """
        table arp try {
            set s { type ether_addr . ipv4_addr; }
            chain c {
                type filter hook input priority filter; policy drop;
                arp saddr ether . arp saddr ip @s accept
            }
        }
        """,
        "CONFIG_NF_TABLES_ARP",
        "nf_tables",
    ),
    Batch(
        "comments of tables",
        """
        table inet try {
            comment "try"
        }
        """,
        "CONFIG_NF_TABLES",
        since="5.10",
    ),
    Batch(
        "sets of interface, MAC and address together",
        """
        table inet try {
            set s {
                type ifname . ether_addr . ipv4_addr
                elements = { "lo" . 02:00:00:00:00:01 . 10.0.0.1 }
            }
            chain c {
                type filter hook prerouting priority raw; policy drop;
                iifname . ether saddr . ip saddr @s accept
            }
        }
        """,
        "CONFIG_NF_TABLES",
    ),
    Batch(
        "concatenated interval maps of verdicts, with counters and comments",
        """
        table inet try {
            map m {
                type ipv4_addr . inet_proto . inet_service : verdict
                flags interval
                counter
                elements = { 10.0.0.0/8 . tcp . 80-90 comment "try" : drop }
            }
            chain c {
                type filter hook forward priority filter; policy drop;
                ip saddr . meta l4proto . th dport vmap @m
            }
        }
        """,
        "CONFIG_NF_TABLES",
        since="5.6",
    ),
    Batch(
        "connection tracking with mark, direction and status",
        """
        table inet try {
            chain c {
                type filter hook forward priority filter; policy drop;
                ct direction vmap { original : drop, reply : accept }
                ct state new ct status & dnat == dnat ct mark set 1 accept
            }
        }
        """,
        "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK_MARK",
        "nft_ct",
    ),
    Batch(
        "source NAT",
        """
        table inet try {
            chain c {
                type nat hook postrouting priority srcnat; policy accept;
                oifname "lo" snat ip to 10.0.0.1
                oifname "eth0" masquerade
            }
        }
        """,
        "CONFIG_NFT_NAT and CONFIG_NFT_MASQ",
        "nft_chain_nat",
    ),
    Batch(
        "destination NAT by a map",
        """
        table inet try {
            map m {
                type inet_proto . inet_service : ipv4_addr . inet_service
                elements = { tcp . 80 : 10.0.0.1 . 80 }
            }
            chain c {
                type nat hook prerouting priority dstnat; policy accept;
                dnat ip to meta l4proto . th dport map @m
            }
        }
        """,
        "CONFIG_NFT_NAT",
        "nft_chain_nat",
        "5.8",
    ),
    Batch(
        "fib",
        """
        table inet try {
            chain c { type filter hook prerouting priority raw; fib daddr type local drop; }
        }
        """,
        "CONFIG_NFT_FIB_INET",
        "nft_fib_inet",
        "4.10",
    ),
    Batch(
        "reject",
        """
        table inet try {
            chain c {
                type filter hook forward priority filter;
                meta l4proto tcp reject with tcp reset
                reject with icmpx admin-prohibited
            }
        }
        """,
        "CONFIG_NFT_REJECT_INET",
        "nft_reject_inet",
    ),
    Batch(
        "limit",
        """
        table inet try {
            chain c { type filter hook input priority filter; limit rate 10/second burst 5 packets accept; }
        }
        """,
        "CONFIG_NFT_LIMIT",
        "nft_limit",
    ),
    Batch(
        "log",
        """
        table inet try {
            chain c { type filter hook forward priority filter; log prefix "try"; }
        }
        """,
        "CONFIG_NFT_LOG",
        "nft_log",
    ),
    Batch(
        "sets that packets fill, with a rate for each key",
        """
        table inet try {
            set s { type ipv4_addr; size 16; flags dynamic,timeout; timeout 1m; }
            chain c {
                type filter hook input priority filter;
                update @s { ip saddr limit rate 50/second burst 50 packets } accept
            }
        }
        """,
        "CONFIG_NFT_LIMIT",
        "nft_limit",
        "4.18",
    ),
    Batch(
        "ct count",
        """
        table inet try {
            set s { type ifname . mark; size 16; flags dynamic; }
            chain c {
                type filter hook forward priority filter;
                add @s { iifname . jhash ip saddr . th sport mod 16 ct count over 9 } drop
            }
        }
        """,
        "CONFIG_NFT_CONNLIMIT and CONFIG_NFT_HASH",
        "nft_connlimit",
        "4.18",
    ),
    Batch(
        "source NAT to random ports of a range",
        """
        table inet try {
            chain a { meta l4proto { tcp, udp } masquerade to :40000-40099 fully-random; }
            chain b { meta l4proto { tcp, udp } masquerade to :50000-50099 fully-random; }
            chain c {
                type nat hook postrouting priority srcnat; policy accept;
                numgen random mod 200 vmap { 0-99 : goto a, 100-199 : goto b }
            }
        }
        """,
        "CONFIG_NFT_MASQ and CONFIG_NFT_NUMGEN",
        "nft_numgen",
        "4.9",
    ),
    Batch(
        "nftables with the bridge family",
        """
        table bridge try {
            chain c { type filter hook forward priority filter; policy drop; }
        }
        """,
        "CONFIG_NF_TABLES_BRIDGE",
        "nf_tables_bridge",
    ),
)

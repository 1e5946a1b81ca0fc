"""The corpus of addresses that lead, or seem to lead, into networks that are not public.

``{port}`` is the canary's, which listens on 127.0.0.1 and must never be called.
"""

from __future__ import annotations

SPELLINGS = (
    *("http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://LOCALHOST.:{port}/", "http://127.0.0.1.:{port}/"),
    # Numbers that some libraries read as IPv4 addresses.
    *("http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://0x7f.1:{port}/", "http://0177.0.0.1:{port}/"),
    *("http://127.1:{port}/", "http://0:{port}/", "http://0.0.0.0:{port}/", "http://017700000001:{port}/"),
    "http://127.0.0.01:{port}/",
    # IPv6, and IPv4 within it.
    *(
        "http://[::1]:{port}/",
        "http://[0:0:0:0:0:0:0:1]:{port}/",
        "http://[::]:{port}/",
        "http://[::127.0.0.1]:{port}/",
    ),
    *("http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/", "http://[::ffff:0:127.0.0.1]:{port}/"),
    *("http://[64:ff9b::7f00:1]:{port}/", "http://[64:ff9b::127.0.0.1]:{port}/", "http://[64:ff9b:1::7f00:1]:{port}/"),
    *("http://[2002:7f00:1::]:{port}/", "http://[2001:0:7f00:1::]:{port}/", "http://[::1%25lo]:{port}/"),
    # Other scripts and letters that IDNA maps to these.
    *("http://①②⑦.⓪.⓪.①:{port}/", "http://１２７.0.0.1:{port}/", "http://127。0。0。1:{port}/"),
    *("http://ⓛocalhost:{port}/", "http://loc\xadalhost:{port}/", "http://ＬＯＣＡＬＨＯＳＴ:{port}/"),
    # What one parser reads so, and another otherwise.
    *(
        "http://example.org@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@example.org/",
        "http://%31%32%37.0.0.1:{port}/",
    ),
    *("http://example.org\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}#@example.org/", "http://127.0.0.1%2f:{port}/"),
    *("http://[::1]example.org:{port}/", "http://127.0.0.1:{port}?@example.org/", "http://127.0.0.1\t:{port}/"),
    *(
        "http://127.0.0.1:{port}\r\n/",
        "http://127.0.0.1:{port}/\0",
        " http://127.0.0.1:{port}/",
        "HTTP://127.0.0.1:{port}",
    ),
    *("http:127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http:///127.0.0.1:{port}/", "http://"),
    *("gopher://127.0.0.1:{port}/_GET", "ftp://127.0.0.1:{port}/", "file:///etc/passwd", "data:text/plain,a", "", "a"),
    # Not this machine, and just as little to be reached.
    *("http://169.254.169.254/latest/", "http://[::ffff:169.254.169.254]/", "http://[64:ff9b::a9fe:a9fe]/"),
    *("http://168.63.129.16/", "http://100.100.100.200/", "http://[fd00:ec2::254]/", "http://192.0.0.192/"),
    *("http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.0.1/", "http://100.64.0.1/", "http://224.0.0.1/"),
    *("http://255.255.255.255/", "http://[fe80::1]/", "http://[fec0::1]/", "http://[fc00::1]/", "http://[ff02::1]/"),
    # Metadata services by name and by 6to4, NAT64 with a prefix of one's own, a site's own networks.
    *(
        "http://[2002:a9fe:a9fe::]/",
        "http://[64:ff9b:1::a9fe:a9fe]/",
        "http://[2001::a9fe:a9fe]/",
        "http://[::a9fe:a9fe]/",
    ),
    *("http://0.0.0.1/", "http://192.88.99.1/", "http://198.18.0.1/", "http://203.0.113.1/", "http://240.0.0.1/"),
)

"""The kernel and packet tests on other Debian releases.

Their libnftables and Python, and their kernels.

    libraries    `make test-versions`: the tests inside a folder of each release, on the kernel at hand
    kernels      `make test-kernels`: the tests inside a virtual machine with each release's kernel
    machine      a virtual machine: what it boots from, booting it, what it says
    folder       a Debian release in a folder, made by debootstrap and kept under build/versions
    project      this checkout inside such a folder, and which tests reach the kernel
    init.sh      what a virtual machine runs
    sctp.py, scale.py    tests that only the virtual machines run: SCTP, and what services cost

docs/testing-versions.md says how to use it.
"""  # noqa: E501

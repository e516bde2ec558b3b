# make demo | check | test | contract | golden | soak | test-versions | test-kernels | bench: each sets up what it needs. Needs root on Debian 12 or later.

PYTHON ?= python3
VENV ?= .venv
SECONDS ?= 600
# Tests that run at a time: twice as many as processors, as they wait for half of it.
JOBS ?= $(shell echo $$((2 * $$(nproc))))

# For running: the library and the lab's tools. For the tests: nft checks what render prints, iptables makes what we take over from.
PACKAGES = python3 python3-venv libnftables1 iproute2 procps
TEST_PACKAGES = $(PACKAGES) nftables iptables ipset ipvsadm openssl git conntrack iperf3 iputils-ping binutils shellcheck chromium ufw firewalld prometheus dbus

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo check test contract golden soak test-versions test-kernels test-image test-cluster test-clone bench dist lock licences sbom clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(VENV)/bin/nftproxy lab demo

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist worksteal $(TESTS)

# Without root, in less than a minute: what to run while writing.
check: $(VENV)/.installed-check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --quiet tests/unit

contract: $(VENV)/.installed-test
	$(VENV)/bin/python -m tests.tools.contract

# What objects become in the table: look at the difference before you commit it.
golden: $(VENV)/.installed-check
	$(VENV)/bin/python -m tests.tools.golden

soak: $(VENV)/.installed-test
	$(VENV)/bin/python -m tests.tools.soak --seconds $(SECONDS)

bench: $(VENV)/.installed-bench
	$(VENV)/bin/nftproxy bench --quick --output build/bench

test-versions: $(VENV)/.installed-test
	@status=0; for part in libraries matrix; do \
		$(VENV)/bin/python -m tests.tools.versions.$$part || status=1; \
	done; exit $$status

test-kernels: $(VENV)/.installed-test
	$(VENV)/bin/python -m tests.tools.versions.kernels

# The steps of deploy/Dockerfile, done in folders made by debootstrap: no container engine is needed, but minutes.
test-image: $(VENV)/.installed-test
	@$(call need,debootstrap)
	$(VENV)/bin/python -m tests.tools.image

# Kubernetes' own tests in a cluster of namespaces, for most of an hour; KUBERNETES_BINARIES names a folder with its programs, or it is skipped.
test-cluster: $(VENV)/.installed-test
	@test -z "$$KUBERNETES_BINARIES" || { $(call need,debootstrap); }
	$(VENV)/bin/python -m tests.cluster

# The README's two commands in a fresh clone, on Debian 12 and 13 in folders: twice the time of the tests.
test-clone: $(VENV)/.installed-test
	@$(call need,debootstrap)
	$(VENV)/bin/python -m tests.tools.clone

dist: $(VENV)/.installed-test
	$(VENV)/bin/python -m build --outdir dist .

# What the image installs: the newest of everything, and the hashes of all its files.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --quiet uv
	for lock in requirements build; do \
		source=pyproject.toml; [ $$lock = requirements ] || source=deploy/build.in; \
		build/lock/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
			--custom-compile-command "make lock" --output-file deploy/$$lock.lock $$source || exit; \
	done

# What is in the image, as CycloneDX's JSON; builds the image if that has not been done.
sbom: $(VENV)/.installed-test
	@test -d build/image/image || { $(call need,debootstrap); $(VENV)/bin/python release/image.py; }
	$(VENV)/bin/python -m release.sbom build/image/image build/nftproxy.cdx.json

licences: $(VENV)/.installed-test
	$(VENV)/bin/python release/licences.py

clean:
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	@$(call need,$(PACKAGES))
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@$(call need,$(PACKAGES))
	$(VENV)/bin/pip install --quiet --quiet --editable .
	@touch $@

# firewalld is there for its rules, and prometheus for tests that start their own: as services of this machine they must not start.
$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	@for package in firewalld prometheus; do dpkg -s $$package >/dev/null 2>&1 || \
		{ mkdir -p /etc/systemd/system && ln -sf /dev/null /etc/systemd/system/$$package.service; }; done
	@$(call need,$(TEST_PACKAGES))
	$(VENV)/bin/pip install --quiet --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

# For `make check`, which needs no packages of Debian and no root.
$(VENV)/.installed-check: pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --quiet --editable '.[test]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/bin/python pyproject.toml
	@$(call need,$(TEST_PACKAGES))
	$(VENV)/bin/pip install --quiet --quiet --editable '.[bench]'
	@touch $@ $(VENV)/.installed

# Installs the Debian packages that are missing, if any.
define need
	missing=""; \
	for package in $(1); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
	fi
endef

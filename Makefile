# make demo    the whole job against local stand-ins, without any account
# make play    the same by clicks, on the stand-ins' pages; prints an address
# make test    the tests
# make check   style, types and tests
# make run     the service under gunicorn on $HOST:$PORT (localhost:4242)
# make fuzz    a million hostile requests (half an hour)
# make check-long  22,000 random histories of billing (more than an hour)
# make mutants FILES="usage.py billing/clock.py"  the changes of these that no test notices
# make real-openmeter  the demo and the stories against an OpenMeter that runs, at $OPENMETER_URL
# make bench   the measurements in bench/README.md (an hour)
# make stripe-mock  what judges our requests to Stripe in the tests; needs Go 1.22
# make probe   what Stripe leaves open, found out on a sandbox of yours (an hour), see docs/stripe-facts.md
# make image-check  the image, built by buildah as root and tried (some minutes)
# make lock    renew requirements*.lock after a change of requirements*.txt

PYTHON ?= python3
UV_VERSION = 0.13.9
MUTMUT_VERSION = 3.8.1
STRIPE_MOCK_NEWEST = v0.203.0
STRIPE_MOCK_USAGE_RECORDS = v0.162.0
INSTALLED = .venv/installed
PYTEST = .venv/bin/python -m pytest -q -n auto --dist worksteal

.PHONY: demo play test check check-long fuzz mutants run bench probe image-check lock stripe-mock real-openmeter

demo: $(INSTALLED)
	@exec .venv/bin/python -m fakes.demo

play: $(INSTALLED)
	@exec .venv/bin/python -m fakes.play

test: $(INSTALLED)
	@$(PYTEST)

check: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy .
	$(PYTEST)

run: $(INSTALLED)
	@exec .venv/bin/python -m service

check-long: $(INSTALLED)
	MODEL_HISTORIES=20000 $(PYTEST) tests/stories/test_model.py
	MODEL_HISTORIES=2000 $(PYTEST) tests/stories/test_interleavings.py

fuzz: $(INSTALLED)
	FUZZ_REQUESTS=1000000 $(PYTEST) tests/stories/test_fuzz.py

mutants: mutants/.venv/installed
	PATH="$(CURDIR)/mutants/.venv/bin:$$PATH" nice mutmut run $(patsubst %.py,'%.*',$(subst /,.,$(FILES)))
	@mutants/.venv/bin/mutmut results | grep -Ev ': (not checked|caught by type check)$$' || true

mutants/.venv/installed: requirements.lock Makefile
	$(PYTHON) -m venv --clear mutants/.venv
	mutants/.venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	mutants/.venv/bin/pip install -q --disable-pip-version-check mutmut==$(MUTMUT_VERSION)
	touch $@

real-openmeter: OPENMETER_URL ?= http://localhost:48888
real-openmeter: $(INSTALLED)
	.venv/bin/python -m fakes.demo --openmeter "$(OPENMETER_URL)"
	REAL_OPENMETER="$(OPENMETER_URL)" $(PYTEST) tests/stories/test_life.py

bench: $(INSTALLED)
	@.venv/bin/python -m bench

probe: $(INSTALLED)
	@exec .venv/bin/python -m probe

image-check: $(INSTALLED)
	@exec .venv/bin/python -m deploy.check_image

stripe-mock: .stripe-mock/$(STRIPE_MOCK_NEWEST)/stripe-mock .stripe-mock/$(STRIPE_MOCK_USAGE_RECORDS)/stripe-mock

.stripe-mock/%/stripe-mock:
	@go version 2> /dev/null | grep -Eq 'go1\.(2[2-9]|[3-9][0-9])' || { echo "Go 1.22 or newer is needed: https://go.dev/dl"; exit 1; }
	CGO_ENABLED=0 GOBIN="$(CURDIR)/.stripe-mock/$*" go install github.com/stripe/stripe-mock@$*

lock:
	$(PYTHON) -m venv --clear .lock
	.lock/bin/pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	.lock/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --output-file requirements.lock requirements-dev.txt
	.lock/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --constraints requirements.lock --output-file requirements-run.lock requirements.txt
	rm -rf .lock

# Each way in which this can fail says so in one line.
$(INSTALLED): requirements.lock
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer, or make PYTHON=/path/to/python ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) has no venv module: install it, on Debian python3-venv"; exit 1; }
	@echo "Installing the pinned packages into .venv, about 20 s ..."
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock 2> .venv/pip.log \
		|| { echo "The packages did not come: is the network there, and pip's package index? .venv/pip.log has more"; exit 1; }
	@touch $(INSTALLED)

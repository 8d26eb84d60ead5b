# make demo    the whole job against local stand-ins, without any account
# make play    the same by clicks, on the stand-ins' pages; prints an address
# make test    the tests
# make check   style, types and tests
# make run     the service under gunicorn on $HOST:$PORT (localhost:4242)
# make fuzz    a million hostile requests (half an hour)
# make check-long  22,000 random histories of billing (more than an hour)
# make mutants FILES="usage.py billing/clock.py"  the changes of these that no test notices
# make bench   the measurements in bench/README.md (a quarter of an hour)
# make image-check  the image, built by buildah as root and tried (some minutes)
# make lock    renew requirements*.lock after a change of requirements*.txt

PYTHON ?= python3
UV_VERSION = 0.13.9
MUTMUT_VERSION = 3.8.1
INSTALLED = .venv/installed
PYTEST = .venv/bin/python -m pytest -q -n auto --dist worksteal

.PHONY: demo play test check check-long fuzz mutants run bench image-check lock

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

bench: $(INSTALLED)
	@.venv/bin/python -m bench

image-check: $(INSTALLED)
	@exec .venv/bin/python -m deploy.check_image

lock:
	$(PYTHON) -m venv --clear .lock
	.lock/bin/pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	.lock/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --output-file requirements.lock requirements-dev.txt
	.lock/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --constraints requirements.lock --output-file requirements-run.lock requirements.txt
	rm -rf .lock

$(INSTALLED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "Installing the pinned packages into .venv, about 20 s ..."
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $(INSTALLED)

"""The account of a request: its client's address, and which header fields count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.client_address import HOPS_MAX, ClientAddresses
from pipeline.account import UNKNOWN, account_named
from pipeline.errors import SettingsError
from pipeline.ports.control import AccountLimit, account_limits
from pipeline.settings import Settings


def addresses(trusted: str = "10.0.0.0/8, 2001:db8:ffff::1", field: str = "x-forwarded-for") -> ClientAddresses:
    return ClientAddresses(Settings(trusted_proxies=trusted, forwarded_field=field))


@pytest.mark.parametrize(
    ("peer", "account"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", UNKNOWN),
        (None, UNKNOWN),
        ("@socket", UNKNOWN),
    ],
)
def test_the_account_is_the_peer_s_address(peer: str | None, account: str) -> None:
    assert addresses("").account(peer) == account


@pytest.mark.parametrize("forwarded", ["198.51.100.1", "198.51.100.1, 10.0.0.1"])
def test_a_peer_that_is_no_trusted_proxy_is_the_client_whatever_it_sends(forwarded: str) -> None:
    assert addresses().account("203.0.113.7", forwarded) == "203.0.113.7"
    assert addresses("").account("10.0.0.1", forwarded) == "10.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "account"),
    [
        ("203.0.113.7", "203.0.113.7"),
        (" 203.0.113.7\t", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("[2001:db8:1:2::9]:4711", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("1.1.1.1, 203.0.113.7", "203.0.113.7"),  # what the client forged comes first
        ("1.1.1.1, 203.0.113.7, 10.0.0.2", "203.0.113.7"),  # two proxies
        ("203.0.113.7, 2001:db8:ffff::1", "203.0.113.7"),
        ("10.0.0.2", "10.0.0.2"),  # the proxy itself is the client
        ("", "10.0.0.1"),
        (None, "10.0.0.1"),
        ("unknown", "10.0.0.1"),
        ("1.1.1.1, unknown", "10.0.0.1"),
        ("1.1.1.1, , ", "10.0.0.1"),
        ("1.1.1.1, 203.0.113.7, 10.0.0.2, x", "10.0.0.1"),
    ],
)
def test_behind_a_trusted_proxy_the_last_address_that_is_not_a_proxy_s_counts(
    forwarded: str | None, account: str
) -> None:
    assert addresses().account("10.0.0.1", forwarded) == account


@pytest.mark.parametrize(
    ("forwarded", "account"),
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ("For=203.0.113.7;proto=http;by=10.0.0.1", "203.0.113.7"),
        ('proto=https; for="203.0.113.7:4711"', "203.0.113.7"),
        ('for="[2001:db8:1:2::9]:4711"', "2001:db8:1:2::/64"),
        ('for=1.1.1.1, for="203.0.113.7"', "203.0.113.7"),
        ("for=1.1.1.1, for=203.0.113.7, for=10.0.0.2", "203.0.113.7"),
        ("for=1.1.1.1, by=10.0.0.1", "10.0.0.1"),  # the newest proxy does not say for whom
        ("for=_hidden", "10.0.0.1"),
        ("for=unknown", "10.0.0.1"),
        ('for="1.1.1.1, for=203.0.113.7', "10.0.0.1"),  # an open quote must not swallow what the proxy adds
        ('for="1.1.1.1, for="[2001:db8:1:2::9]"', "10.0.0.1"),
        ('for="\\1.1.1.1"', "1.1.1.1"),
        ("203.0.113.7", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_by_its_own_grammar(forwarded: str, account: str) -> None:
    assert addresses(field="forwarded").account("10.0.0.1", forwarded) == account


def test_a_chain_of_proxies_has_a_bounded_length() -> None:
    proxies = ["10.0.0.2"] * (HOPS_MAX - 1)
    assert addresses().account("10.0.0.1", ", ".join(["203.0.113.7", *proxies])) == "203.0.113.7"
    assert addresses().account("10.0.0.1", ", ".join(["203.0.113.7", *proxies, "10.0.0.2"])) == "10.0.0.2"


@given(st.text(), st.sampled_from(["x-forwarded-for", "forwarded"]))
def test_no_prefix_of_a_field_gives_a_client_another_account(forged: str, field: str) -> None:
    added = "for=203.0.113.7" if field == "forwarded" else "203.0.113.7"
    account = addresses(field=field).account("10.0.0.1", f"{forged}, {added}")
    assert account in {"203.0.113.7", "10.0.0.1"}  # the latter for a field that is no field


@given(st.ip_addresses())
def test_an_account_is_its_own_name(address: object) -> None:
    account = addresses("").account(str(address))
    assert account_named(account) == account


@pytest.mark.parametrize("text", ["", "x", "10.0.0.0/8", "10.0.0.1/64", "2001:db8::/32"])
def test_what_is_no_address_names_no_account(text: str) -> None:
    assert account_named(text) is None


def test_a_long_field_that_breaks_the_grammar_takes_no_time() -> None:
    for part in (";  ", ",  ", "a=b ;  ", '"'):
        assert addresses(field="forwarded").account("10.0.0.1", part * 2000 + "\0") == "10.0.0.1"


def test_settings_name_a_wrong_network() -> None:
    with pytest.raises(SettingsError, match=r"TRUSTED_PROXIES: 10\.0\.0\.1/8 has host bits set"):
        Settings(trusted_proxies="10.0.0.1/8")
    with pytest.raises(SettingsError, match=r"TRUSTED_PROXIES"):
        Settings(trusted_proxies="a proxy")


def test_a_proxy_is_known_by_its_address() -> None:
    assert addresses().is_proxy("10.1.2.3")
    assert addresses().is_proxy("::ffff:10.1.2.3")
    assert not addresses().is_proxy("203.0.113.7")
    assert not addresses().is_proxy(None)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"account_limits": "10.0.0.1"}, r"ACCOUNT_LIMITS: '10\.0\.0\.1' does not begin with an address and ="),
        ({"account_limits": "me=1"}, r"ACCOUNT_LIMITS: 'me=1' does not begin with an address and ="),
        ({"account_limits": "10.0.0.1=x"}, r"ACCOUNT_LIMITS: '10\.0\.0\.1=x' does not end with a number"),
        ({"account_limits": "10.0.0.1=0"}, r"ACCOUNT_LIMITS: 10\.0\.0\.1=0 is not between 0\.01 and 1e\+07"),
        ({"account_weights": "10.0.0.1=nan"}, r"ACCOUNT_WEIGHTS: 10\.0\.0\.1=nan is not between 0\.01 and 100"),
    ],
)
def test_settings_name_a_wrong_figure_of_an_account(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        Settings(**changes)  # type: ignore[arg-type]


def test_what_is_set_for_accounts() -> None:
    settings = Settings(account_limits="10.0.0.1=500, 2001:db8::9=20.5", account_weights="10.0.0.1=2,10.0.0.2=0.5")
    assert account_limits(settings) == {
        "10.0.0.1": AccountLimit(500.0, 2.0),
        "2001:db8::/64": AccountLimit(20.5, 1.0),
        "10.0.0.2": AccountLimit(None, 0.5),
    }

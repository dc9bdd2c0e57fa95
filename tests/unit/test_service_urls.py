from __future__ import annotations

import pytest

from gateway.errors import Unprocessable
from gateway.service_urls import check_base_url, check_resolved, origin

INSIDE = [
    "https://127.0.0.1/v1",
    "https://127.1/v1",
    "https://127.0.1/v1",
    "https://2130706433/v1",
    "https://0x7f000001/v1",
    "https://0x7f.0.0.1/v1",
    "https://0177.0.0.1/v1",
    "https://127.0.0.1./v1",
    "https://0/v1",
    "https://0.0.0.0/v1",
    "https://10.0.0.1/v1",
    "https://172.16.0.1/v1",
    "https://192.168.1.1/v1",
    "https://100.64.0.1/v1",
    "https://100.100.100.200/v1",
    "https://169.254.169.254/latest",
    "https://168.63.129.16/",
    "https://192.0.0.192/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::1]/v1",
    "https://[::]/v1",
    "https://[::ffff:127.0.0.1]/v1",
    "https://[::ffff:7f00:1]/v1",
    "https://[::127.0.0.1]/v1",
    "https://[::ffff:a9fe:a9fe]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[2002:a9fe:a9fe::]/",
    "https://[2002:7f00:1::]/",
    "https://[fe80::1]/",
    "https://[fec0::1]/",
    "https://[64:ff9b:1::a00:1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/latest",
    "https://[ff02::1]/",
    "https://localhost/v1",
    "https://LOCALHOST./v1",
    "https://api.localhost/v1",
    "https://metadata.google.internal/",
    "https://db.cluster.local/",
    "https://router.home.arpa/",
    "https://vllm/v1",
]
MALFORMED = [
    "",
    "api.example.com/v1",
    "//api.example.com/v1",
    "ftp://api.example.com",
    "file:///etc/passwd",
    "https://",
    "https:///v1",
    "https://user@api.example.com/v1",
    "https://user:pass@api.example.com/v1",
    "https://@api.example.com/v1",
    "https://api.example.com/v1?key=x",
    "https://api.example.com/v1?",
    "https://api.example.com/v1#x",
    "https://api.example.com/a/../b",
    "https://api.example.com/%2e%2E/b",
    "https://api.example.com:99999/v1",
    "https://api.example.com:0/v1",
    "https://api.example.com:x/v1",
    "https://api.example.com\\@127.0.0.1/",
    "https://api.example.com\t.evil.example/",
    "https://api.example.com\n/",
    "https://api example.com/",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://exämple.com/",
    "https://127\u30020\u30020\u30021/",
    "https://%31%32%37.0.0.1/",
    "https://api..example.com/",
    "https://-api.example.com/",
    "https://256.0.0.1/",
    "https://1.2.3.4.5/",
    "https://[::1/",
    "https://[api.example.com]/",
    f"https://api.example.com/{'a' * 600}",
]


@pytest.mark.parametrize("url", INSIDE + MALFORMED)
def test_what_leads_inside_or_is_no_base_url_is_422(url: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        check_base_url(url)
    assert caught.value.param == "base_url"
    assert "pass" not in caught.value.message


@pytest.mark.parametrize("url", MALFORMED)
def test_the_local_stacks_setting_does_not_allow_what_is_malformed(url: str) -> None:
    with pytest.raises(Unprocessable):
        check_base_url(url, allow_private=True)


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://API.OpenAI.com:443/v1/", "https://api.openai.com/v1"),
        ("https://api.example.com.:8443", "https://api.example.com:8443"),
        ("https://8.8.8.8/v1//", "https://8.8.8.8/v1"),
        ("https://[2606:4700:0:0::1111]/v1", "https://[2606:4700::1111]/v1"),
        ("https://xn--exmple-cua.com/V1", "https://xn--exmple-cua.com/V1"),
        ("https://my_host.example.com", "https://my_host.example.com"),
    ],
)
def test_what_leads_outside_is_given_back_in_its_normal_form(url: str, normal: str) -> None:
    assert check_base_url(url) == normal
    assert check_base_url(normal) == normal


def test_http_is_for_the_local_stack() -> None:
    with pytest.raises(Unprocessable, match="https"):
        check_base_url("http://api.example.com/v1")
    assert check_base_url("http://127.0.0.1:11434/v1", allow_private=True) == "http://127.0.0.1:11434/v1"
    assert check_base_url("http://vllm:8000/v1/", allow_private=True) == "http://vllm:8000/v1"


def test_origins_are_alike_if_and_only_if_a_key_may_go_to_both() -> None:
    same = {
        "https://api.example.com",
        "https://API.example.com/v1",
        "https://api.example.com:443/v2/",
        "https://api.example.com./",
    }
    assert {origin(url) for url in same} == {"https://api.example.com:443"}
    others = [
        "http://api.example.com",
        "https://api.example.com:8443",
        "https://api.example.org",
        "https://v1.api.example.com",
    ]
    assert len({origin(url) for url in others} | {"https://api.example.com:443"}) == 5
    assert origin("https://[2606:4700:0::1]") == origin("https://[2606:4700::0001]:443/x")


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["93.184.216.34", "127.0.0.1"],
        ["::ffff:169.254.169.254"],
        ["fe80::1%eth0"],
        ["64:ff9b::7f00:1"],
        [],
    ],
)
async def test_a_name_that_resolves_inside_is_422(addresses: list[str]) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("api.example.com", 8443)
        return addresses

    with pytest.raises(Unprocessable, match="base_url"):
        await check_resolved("https://api.example.com:8443/v1", resolve=resolve)


async def test_a_name_that_resolves_outside_is_taken() -> None:
    async def resolve(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34", "2606:2800:220:1::1"]

    assert (
        await check_resolved("https://api.example.com/v1/", resolve=resolve) == "https://api.example.com/v1"
    )


async def test_a_name_that_does_not_resolve_is_422() -> None:
    async def resolve(_host: str, _port: int) -> list[str]:
        raise OSError("no such host")

    with pytest.raises(Unprocessable, match="can't be resolved"):
        await check_resolved("https://api.example.com/v1", resolve=resolve)


async def test_nothing_is_resolved_where_there_is_no_need() -> None:
    async def resolve(_host: str, _port: int) -> list[str]:
        raise AssertionError

    assert await check_resolved("https://8.8.8.8/v1", resolve=resolve) == "https://8.8.8.8/v1"
    assert await check_resolved("http://vllm/v1", allow_private=True, resolve=resolve) == "http://vllm/v1"


async def test_the_real_resolver_is_used_by_default() -> None:
    # "localhost" is refused by its name; this goes through the resolver by a name that no rule knows.
    from gateway.service_urls import _resolve

    assert set(await _resolve("localhost", 443)) <= {"127.0.0.1", "::1"}

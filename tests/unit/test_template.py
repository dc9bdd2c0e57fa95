"""What CloudFormation will make of the templates: the SAM translator's own output, looked at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from gateway.errors import GatewayError
from gateway.runtime.function import Function
from gateway.runtime.process import Process
from gateway.settings import Settings
from infra.local.server import FUNCTIONS, load_functions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPOSITORY = Path(__file__).parents[2]
TEMPLATE = REPOSITORY / "template.yaml"
BOOTSTRAP = REPOSITORY / "infra" / "bootstrap.yaml"
SAM = REPOSITORY / ".venv" / "sam" / "bin"
PARSE = """
import json, sys
from samcli.yamlhelper import yaml_parse
json.dump(yaml_parse(sys.stdin.read()), sys.stdout)
"""
XRAY = {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}
CATCH_ALL = "/{proxy+}"
IMAGE = "local_models"
STREAMING = {"ChatFunctionAliaslive", "LocalModelsFunctionAliaslive"}
STREAMING_MILLISECONDS = 900_000

Template = dict[str, Any]


def run(*command: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    assert SAM.is_dir(), "the SAM CLI is missing: `make .venv/.sam` installs it"
    environment = {**os.environ, "AWS_DEFAULT_REGION": "us-east-1", "SAM_CLI_TELEMETRY": "0"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=REPOSITORY,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def translate(path: Path) -> Template:
    done = run(SAM / "python", "infra/sam/translate.py", path, "SupabaseUrl=https://x.example.com")
    assert done.returncode == 0, done.stderr
    translated: Template = json.loads(done.stdout)
    return translated


def parse(path: Path) -> Template:
    done = run(SAM / "python", "-c", PARSE, text=path.read_text())
    assert done.returncode == 0, done.stderr
    parsed: Template = json.loads(done.stdout)
    return parsed


@pytest.fixture(scope="module")
def translated() -> Template:
    return translate(TEMPLATE)


@pytest.fixture(scope="module")
def parsed() -> Template:
    return parse(TEMPLATE)


@pytest.fixture(scope="module")
def bootstrap() -> Template:
    return parse(BOOTSTRAP)


def resources(template: Template, kind: str) -> dict[str, Template]:
    return {name: each for name, each in template["Resources"].items() if each["Type"] == kind}


def functions(template: Template) -> dict[str, Template]:
    """Function's folder → its resource. The one that is an image has no handler."""
    return {
        each["Properties"].get("Handler", IMAGE).split(".")[0]: each
        for each in resources(template, "AWS::Lambda::Function").values()
    }


def with_local_models(value: Any) -> Any:
    """What CloudFormation takes of a value where LocalModels is set."""
    if isinstance(value, dict) and list(value) == ["Fn::If"] and value["Fn::If"][0] == "HasLocalModels":
        return with_local_models(value["Fn::If"][1])
    if isinstance(value, dict):
        return {name: with_local_models(each) for name, each in value.items()}
    return [with_local_models(each) for each in value] if isinstance(value, list) else value


def integrations(template: Template) -> dict[str, tuple[str, Template]]:
    """Path → the logical id of the alias that serves it, and the integration."""
    [api] = resources(template, "AWS::ApiGateway::RestApi").values()
    found = {}
    for path, methods in with_local_models(api["Properties"]["Body"]["paths"]).items():
        assert list(methods) == ["x-amazon-apigateway-any-method"], f"{path} leaves methods to API Gateway"
        integration = methods["x-amazon-apigateway-any-method"]["x-amazon-apigateway-integration"]
        [alias] = re.findall(r"functions/\$\{(\w+)\}/", integration["uri"]["Fn::Sub"])
        found[path] = (alias, integration)
    return found


def streaming_faults(template: Template) -> list[str]:
    """What keeps the routes of the functions that stream from it, for as long as a chat may take."""
    faults = []
    for path, (alias, integration) in integrations(template).items():
        streams = integration["uri"]["Fn::Sub"].endswith("/response-streaming-invocations")
        if alias not in STREAMING:
            if streams or "responseTransferMode" in integration:
                faults.append(f"{path} streams, but its function doesn't")
            continue
        if not streams:
            faults.append(f"{path} has a buffered URI")
        if integration.get("responseTransferMode") != "STREAM":
            faults.append(f"{path} is buffered")
        if integration.get("timeoutInMillis") != STREAMING_MILLISECONDS:
            faults.append(f"{path} ends after {integration.get('timeoutInMillis', 29_000)} ms")
    return faults


def test_every_chat_route_streams_and_no_other(translated: Template) -> None:
    assert streaming_faults(translated) == []
    assert functions(translated)["chat"]["Properties"]["Timeout"] * 1000 == STREAMING_MILLISECONDS


@pytest.mark.parametrize(
    ("written", "mistaken", "fault"),
    [
        ("ResponseTransferMode: RESPONSE_STREAM", "ResponseTransferMode: STREAM", "buffered"),
        ("            TimeoutInMillis: 900000\n", "", "29000 ms"),
    ],
)
def test_mistakes_that_sam_accepts_are_found(tmp_path: Path, written: str, mistaken: str, fault: str) -> None:
    template = tmp_path / "template.yaml"
    template.write_text(TEMPLATE.read_text().replace(written, mistaken))
    faults = streaming_faults(translate(template))
    assert len([each for each in faults if fault in each]) >= 6


def served_paths() -> dict[str, set[str]]:
    """Function's folder → the paths of its operations, as API Gateway writes them."""
    settings = Settings(
        rest_url="http://127.0.0.1:1", supabase_key=SecretStr("none"), master_keys={"one": bytes(32)}
    )
    process = Process.start(settings)
    served = {}
    for name in FUNCTIONS:
        for app in load_functions([name]):
            assert isinstance(app, Function)
            served[name] = {
                re.sub(r"\{(\w+):path\}", r"{\1+}", operation.path) for operation in app.operations(process)
            }
    return served


def test_template_and_functions_have_the_same_routes(translated: Template) -> None:
    routed: dict[str, set[str]] = {}
    for path, (alias, _integration) in integrations(translated).items():
        routed.setdefault(alias.removesuffix("FunctionAliaslive").lower(), set()).add(path)
    # What nobody serves goes to web, whose 404 is the contract's.
    assert CATCH_ALL in routed["web"]
    routed["web"].discard(CATCH_ALL)
    # Below this path it has OpenAI's own.
    assert routed.pop("localmodels") == {"/local-models/{proxy+}"}
    assert routed == served_paths()


def test_every_handler_has_a_function(translated: Template) -> None:
    handlers = {path.parent.name for path in (REPOSITORY / "functions").glob("*/handler.py")}
    assert set(functions(translated)) == handlers
    for name, function in functions(translated).items():
        if name != IMAGE:
            assert function["Properties"]["Handler"] == f"{name}.handler.handler"


def statements(resource: Template) -> Iterator[Template]:
    properties = resource["Properties"]
    documents = [policy["PolicyDocument"] for policy in properties.get("Policies", ())]
    if "PolicyDocument" in properties:
        documents.append(properties["PolicyDocument"])
    for document in documents:
        yield from document["Statement"]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


POLICIES = ("AWS::IAM::Role", "AWS::IAM::ManagedPolicy", "AWS::IAM::Policy")


def wildcards(template: Template) -> list[str]:
    found = []
    for kind in POLICIES:
        for name, resource in resources(template, kind).items():
            for statement in statements(resource):
                actions = set(as_list(statement["Action"]))
                if "*" in json.dumps([sorted(actions), statement["Resource"]]) and not actions <= XRAY:
                    found.append(f"{name}: {statement}")
    return found


def test_no_role_has_a_wildcard(translated: Template) -> None:
    assert wildcards(translated) == []


def test_a_wildcard_would_be_found(translated: Template) -> None:
    role = json.loads(json.dumps(translated["Resources"]["KeysRole"]))
    role["Properties"]["Policies"][0]["PolicyDocument"]["Statement"][0]["Resource"] = "*"
    assert wildcards({"Resources": {"KeysRole": role}})


def test_each_function_has_a_role_of_its_own(translated: Template) -> None:
    roles = {
        name: function["Properties"]["Role"]["Fn::GetAtt"][0]
        for name, function in functions(translated).items()
    }
    assert len(set(roles.values())) == len(roles)
    for role in roles.values():
        properties = translated["Resources"][role]["Properties"]
        # AWS's own policies are wide: none of them. The local models have no business with the secret.
        ours = [] if role == "LocalModelsRole" else [{"Ref": "FunctionPolicy"}]
        assert properties.get("ManagedPolicyArns", []) == ours
        assert properties["PermissionsBoundary"]["Fn::If"][1] == {"Ref": "PermissionsBoundaryArn"}


def test_only_who_must_reaches_the_queue(translated: Template) -> None:
    reach = {
        name: {
            action
            for statement in statements(
                translated["Resources"][function["Properties"]["Role"]["Fn::GetAtt"][0]]
            )
            for action in as_list(statement["Action"])
            if action.startswith("sqs:")
        }
        for name, function in functions(translated).items()
    }
    assert reach.pop("chat") == {"sqs:SendMessage"}
    assert reach.pop("maintenance") == {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}
    assert not any(reach.values())


def test_maintenance_alone_publishes_to_the_topic_of_alerts(
    translated: Template, bootstrap: Template
) -> None:
    policy = translated["Resources"]["AlertTopicPolicy"]
    assert policy["Condition"] == "HasAlertTopic"
    assert policy["Properties"]["Roles"] == [{"Ref": "MaintenanceRole"}]
    [statement] = statements(policy)
    assert (statement["Action"], statement["Resource"]) == ("sns:Publish", {"Ref": "AlertTopicArn"})
    allowed = [each["Action"] for each in statements(bootstrap["Resources"]["Boundary"])]
    assert "sns:Publish" in allowed
    named = {
        name
        for name, function in functions(translated).items()
        if "SLUICE_ALERT_TOPIC_ARN" in function["Properties"]["Environment"]["Variables"]
    }
    assert named == {"maintenance"}


def test_boundary_allows_what_the_roles_may_do(translated: Template, bootstrap: Template) -> None:
    boundary = bootstrap["Resources"]["Boundary"]
    allowed = {action for statement in statements(boundary) for action in as_list(statement["Action"])}
    used = {
        action
        for kind in POLICIES
        for resource in resources(translated, kind).values()
        for statement in statements(resource)
        for action in as_list(statement["Action"])
    }
    assert used == allowed


def test_every_function_deploys_through_an_alias_with_a_way_back(translated: Template) -> None:
    aliases = resources(translated, "AWS::Lambda::Alias")
    assert len(aliases) == len(functions(translated))
    alarms = resources(translated, "AWS::CloudWatch::Alarm")
    for alias in aliases.values():
        assert alias["Properties"]["Name"] == "live"
        update = alias["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]
        group = translated["Resources"][update["DeploymentGroupName"]["Ref"]]["Properties"]
        assert "Canary10Percent5Minutes" in json.dumps(group["DeploymentConfigName"])
        assert "DEPLOYMENT_STOP_ON_ALARM" in group["AutoRollbackConfiguration"]["Events"]
        watching = [each["Name"]["Ref"] for each in group["AlarmConfiguration"]["Alarms"]]
        assert watching
        assert set(watching) <= set(alarms)
        # The errors of the version that is being tried, and not those of the one before.
        dimensions = {each["Name"]: each["Value"] for each in alarms[watching[0]]["Properties"]["Dimensions"]}
        assert dimensions["FunctionName"] == alias["Properties"]["FunctionName"]
        assert dimensions["ExecutedVersion"] == alias["Properties"]["FunctionVersion"]


def test_without_local_models_nothing_of_them_is_made(translated: Template) -> None:
    theirs = {name: each for name, each in translated["Resources"].items() if "LocalModels" in name}
    assert len(theirs) == 8
    assert {each.get("Condition") for each in theirs.values()} == {"HasLocalModels"}
    assert translated["Parameters"]["LocalModels"]["Default"] == ""
    [api] = resources(translated, "AWS::ApiGateway::RestApi").values()
    path = api["Properties"]["Body"]["paths"]["/local-models/{proxy+}"]
    assert path["Fn::If"][0] == "HasLocalModels"
    assert path["Fn::If"][2] == {"Ref": "AWS::NoValue"}
    # No other resource depends on one that may not be there.
    rest = [each for name, each in translated["Resources"].items() if name not in theirs and each != api]
    assert not re.findall(r'"LocalModels\w*(?:Function|Role|Logs|Alarm)', json.dumps(rest))


def test_local_models_are_an_image_that_only_a_key_opens(translated: Template, parsed: Template) -> None:
    properties = functions(translated)[IMAGE]["Properties"]
    assert properties["PackageType"] == "Image"
    assert not {"Handler", "Runtime", "Layers"} & set(properties)
    # The hash of the key and no secret: a function's configuration can be read.
    assert properties["Environment"]["Variables"] == {
        "SLUICE_LOCAL_MODELS": {"Ref": "LocalModels"},
        "SLUICE_LOCAL_MODELS_KEY_SHA256": {"Ref": "LocalModelsKeyHash"},
    }
    rule = parsed["Rules"]["LocalModelsHaveImageAndKey"]
    assert [each["Assert"]["Fn::Not"][0]["Fn::Equals"][0]["Ref"] for each in rule["Assertions"]] == [
        "LocalModelsImage",
        "LocalModelsKeyHash",
    ]
    # `make build` leaves it alone: SAM builds no image without these.
    assert "Metadata" not in parsed["Resources"]["LocalModelsFunction"]


def test_a_changed_setting_is_a_new_version(parsed: Template) -> None:
    for function in resources(parsed, "AWS::Serverless::Function").values():
        assert function["Properties"]["AutoPublishAliasAllProperties"] is True


@pytest.mark.parametrize(
    "metric",
    [
        "5XXError",
        "Errors",
        "Throttles",
        "Invocations",
        "ApproximateNumberOfMessagesVisible",
        "ApproximateAgeOfOldestMessage",
        "first-content",
    ],
)
def test_what_goes_wrong_has_an_alarm_that_somebody_hears(translated: Template, metric: str) -> None:
    alarms = resources(translated, "AWS::CloudWatch::Alarm").values()
    found = [alarm["Properties"] for alarm in alarms if metric in json.dumps(alarm["Properties"])]
    assert found
    for alarm in found:
        assert {"Ref": "AlarmTopicArn"} in alarm["AlarmActions"]["Fn::If"][1]


def test_gateways_own_errors_have_the_contracts_shape(translated: Template) -> None:
    [api] = resources(translated, "AWS::ApiGateway::RestApi").values()
    answers: Mapping[str, Template] = api["Properties"]["Body"]["x-amazon-apigateway-gateway-responses"]
    assert {"DEFAULT_4XX", "DEFAULT_5XX", "THROTTLED", "REQUEST_TOO_LARGE"} <= set(answers)
    types = {each.status: each.type for each in GatewayError.__subclasses__()}
    for name, answer in answers.items():
        body = answer["responseTemplates"]["application/json"]
        error = json.loads(body.replace("$context.error.messageString", '"Forbidden"'))["error"]
        assert list(error) == ["message", "type", "param", "code"], name
        assert error["message"]
        headers = answer["responseParameters"]
        assert headers["gatewayresponse.header.access-control-allow-origin"] == "'*'"
        assert headers["gatewayresponse.header.x-request-id"] == "context.requestId"
        if "statusCode" in answer:
            assert error["type"] == types[int(answer["statusCode"])], name
    assert answers["THROTTLED"]["responseParameters"]["gatewayresponse.header.retry-after"] == "'1'"


def test_api_is_regional_throttled_and_logged_without_secrets(translated: Template) -> None:
    [api] = resources(translated, "AWS::ApiGateway::RestApi").values()
    assert api["Properties"]["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
    [stage] = resources(translated, "AWS::ApiGateway::Stage").values()
    [method] = stage["Properties"]["MethodSettings"]
    assert method["ThrottlingRateLimit"] == {"Ref": "ThrottleRate"}
    assert method["DataTraceEnabled"] is False
    assert stage["Properties"]["TracingEnabled"] is True
    line = json.loads(stage["Properties"]["AccessLogSetting"]["Format"])
    assert {"requestId", "status", "firstContentMs"} <= set(line)
    assert not [
        value
        for value in line.values()
        if re.search("request.?header|query|authorizer", value, re.IGNORECASE)
    ]
    for name, group in resources(translated, "AWS::Logs::LogGroup").items():
        assert group["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name


def test_functions_log_where_their_roles_may(translated: Template) -> None:
    for function in functions(translated).values():
        group = function["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]
        role = translated["Resources"][function["Properties"]["Role"]["Fn::GetAtt"][0]]
        assert {"Fn::GetAtt": [group, "Arn"]} in [statement["Resource"] for statement in statements(role)]


def test_failed_settlements_come_back_and_are_kept(translated: Template) -> None:
    [source] = resources(translated, "AWS::Lambda::EventSourceMapping").values()
    assert source["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert source["Properties"]["FunctionName"] == {"Ref": "MaintenanceFunctionAliaslive"}
    queues = resources(translated, "AWS::SQS::Queue")
    assert {queue["DeletionPolicy"] for queue in queues.values()} == {"Retain"}
    queue = queues["SettlementQueue"]["Properties"]
    timeout = functions(translated)["maintenance"]["Properties"]["Timeout"]
    assert queue["VisibilityTimeout"] >= 6 * timeout
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": ["UnsettledQueue", "Arn"]}
    # A day's outage of the database gives up no settlement; what is given up waits a fortnight for a person.
    assert queue["VisibilityTimeout"] * queue["RedrivePolicy"]["maxReceiveCount"] >= 24 * 3600
    assert queues["UnsettledQueue"]["Properties"]["MessageRetentionPeriod"] == 14 * 24 * 3600


def test_a_new_account_takes_the_defaults(parsed: Template) -> None:
    # Reserving leaves a new account, which may run ten at once, with less than Lambda wants unreserved.
    for name in ("ChatConcurrency", "ManagementConcurrency", "MaintenanceConcurrency"):
        assert parsed["Parameters"][name]["Default"] == -1
    required = {name for name, parameter in parsed["Parameters"].items() if "Default" not in parameter}
    assert required == {"SupabaseUrl", "SecretArn"}


def test_chat_may_not_outlast_its_function(parsed: Template, translated: Template) -> None:
    longest = parsed["Parameters"]["RequestTimeoutSeconds"]["MaxValue"]
    assert functions(translated)["chat"]["Properties"]["Timeout"] - longest >= 60


def test_environment_is_what_the_settings_read(translated: Template) -> None:
    for name, function in functions(translated).items():
        variables = function["Properties"]["Environment"]["Variables"]
        given = {key: value if isinstance(value, str) else "" for key, value in variables.items()}
        known = {
            "SLUICE_SECRET_ARN",
            "SLUICE_SPOOL_QUEUE_URL",
            "AWS_LAMBDA_EXEC_WRAPPER",
            "POWERTOOLS_SERVICE_NAME",
            "POWERTOOLS_METRICS_NAMESPACE",
            # OpenTelemetry's SDK reads them.
            "OTEL_SERVICE_NAME",
            "OTEL_RESOURCE_ATTRIBUTES",
            "OTEL_TRACES_SAMPLER",
            "OTEL_TRACES_SAMPLER_ARG",
        }
        reads = "local_models/options.py" if name == IMAGE else "settings.py"
        for key in set(given) - known:
            # A variable that the settings don't read would be a switch connected to nothing.
            text = (REPOSITORY / "functions/gateway" / reads).read_text()
            assert key == "SUPABASE_URL" or f'"{key}"' in text
        assert ("AWS_LAMBDA_EXEC_WRAPPER" in variables) == (name == "chat")
    wrapper = functions(translated)["chat"]["Properties"]["Environment"]["Variables"][
        "AWS_LAMBDA_EXEC_WRAPPER"
    ]
    assert os.access(REPOSITORY / "functions" / wrapper.removeprefix("/var/task/"), os.X_OK)


def test_generated_secret_is_one_that_the_settings_take(bootstrap: Template) -> None:
    secret = bootstrap["Resources"]["Secret"]["Properties"]["SecretString"]["Fn::Sub"]
    made = bootstrap["Resources"]["MasterKey"]["Properties"]["GenerateSecretString"]
    assert made["ExcludePunctuation"] is True
    text = secret.replace("${SupabaseKey}", "sb_secret_x").replace(
        "{{resolve:secretsmanager:${MasterKey}:SecretString}}", "9" * made["PasswordLength"]
    )
    read = Settings.from_environment({"SUPABASE_URL": "https://x.supabase.co", **json.loads(text)})
    assert read.supabase_key.get_secret_value() == "sb_secret_x"
    assert {name: len(key) for name, key in read.master_keys.items()} == {"first": 32}


def test_stages_set_what_the_template_has(parsed: Template) -> None:
    config = tomllib.loads((REPOSITORY / "infra" / "samconfig.toml").read_text())
    for stage in ("dev", "prod"):
        deploy = config[stage]["deploy"]["parameters"]
        # The deploy role may touch no stack of another name.
        assert deploy["stack_name"] == f"sluice-{stage}"
        overrides = dict(each.split("=", 1) for each in deploy["parameter_overrides"])
        assert set(overrides) <= set(parsed["Parameters"])
        assert overrides["Stage"] == stage
    assert "AllowedOrigins" not in dict(
        each.split("=", 1) for each in config["prod"]["deploy"]["parameters"]["parameter_overrides"]
    )


@pytest.mark.parametrize("template", [TEMPLATE, BOOTSTRAP], ids=lambda path: path.name)
def test_cfn_lint_finds_nothing(template: Path) -> None:
    done = run(SAM / "cfn-lint", "--template", template)
    assert done.returncode == 0, done.stdout


def test_sam_validates() -> None:
    done = run(SAM / "sam", "validate", "--lint", "--template", TEMPLATE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid SAM Template" in done.stdout


def test_packages_are_not_built_for_an_unknown_architecture(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ARCHITECTURE"}
    done = subprocess.run(
        [
            "make",
            "-f",
            REPOSITORY / "functions" / "Makefile",
            "build-ChatFunction",
            f"ARTIFACTS_DIR={tmp_path}",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "run `make build`" in done.stderr

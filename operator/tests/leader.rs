//! Leader election against a fake API server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::time::Duration;

use fake::{FakeApi, failure};
use http::{Method, StatusCode};
use kube::Api;
use kube::client::Body;
use parovoz_operator::http::Health;
use parovoz_operator::leader::{Election, LeaderError, RENEW_WITHIN, Round};
use parovoz_operator::metrics::Metrics;
use serde_json::json;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/ops/leases/parovoz-operator";

fn election(api: &FakeApi, identity: &str) -> Election {
    Election::new(Api::namespaced(api.client(), "ops"), "parovoz-operator".into(), identity.into())
}

#[tokio::test]
async fn the_first_takes_the_lease_and_the_second_waits_until_it_is_given_back() {
    let api = FakeApi::default();
    let (mut one, mut two) = (election(&api, "one"), election(&api, "two"));
    assert_eq!(one.round().await, Ok(Round::Held));
    assert_eq!(two.round().await, Ok(Round::Other("one".into())));
    assert_eq!(one.round().await, Ok(Round::Held), "a holder renews");
    assert_eq!(two.round().await, Ok(Round::Other("one".into())), "what moves is not expired");
    one.release().await;
    assert_eq!(two.round().await, Ok(Round::Held));
    let lease = api.get(PATH).unwrap();
    assert_eq!((&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]), (&json!("two"), &json!(1)));
}

#[tokio::test]
async fn a_lease_that_does_not_move_is_taken_after_its_duration_by_the_own_clock() {
    let api = FakeApi::default();
    let (mut one, mut two) = (election(&api, "one"), election(&api, "two"));
    assert_eq!(one.round().await, Ok(Round::Held));
    // Its holder's clock is far ahead: only movement counts.
    let mut lease = api.get(PATH).unwrap();
    lease["spec"]["renewTime"] = json!("2199-01-01T00:00:00.000000Z");
    lease["spec"]["leaseDurationSeconds"] = json!(1);
    api.put(PATH, lease);
    assert_eq!(two.round().await, Ok(Round::Other("one".into())));
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(two.round().await, Ok(Round::Held));
    assert_eq!(one.round().await, Ok(Round::Other("two".into())));
}

#[tokio::test]
async fn two_that_ask_at_once_do_not_both_get_it() {
    let api = FakeApi::default();
    let mut one = election(&api, "one");
    api.interfere({
        let api = api.clone();
        move |asked| {
            if asked.method == Method::POST {
                // Another process is quicker by a hair.
                api.put(PATH, json!({"metadata": {"name": "parovoz-operator"}, "spec": {"holderIdentity": "two"}}));
            }
            None
        }
    });
    assert_eq!(one.round().await, Ok(Round::Other("two".into())));
}

#[tokio::test]
async fn a_lost_write_on_the_own_lease_is_tried_again() {
    let api = FakeApi::default();
    let mut one = election(&api, "one");
    assert_eq!(one.round().await, Ok(Round::Held));
    api.interfere(|asked| (asked.method == Method::PUT).then(|| failure(StatusCode::CONFLICT, "Conflict")));
    assert!(one.round().await.is_err());
    api.interfere(|_| None);
    assert_eq!(one.round().await, Ok(Round::Held));
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_renewals_fail_late_stops_before_its_lease_may_be_taken() {
    let (service, mut handle) = tower_test::mock::pair::<http::Request<Body>, http::Response<Body>>();
    tokio::spawn(async move {
        while let Some((_, respond)) = handle.next_request().await {
            tokio::time::sleep(Duration::from_millis(2_900)).await;
            respond.send_response(http::Response::builder().status(500).body(Body::empty()).unwrap());
        }
    });
    let api = Api::namespaced(kube::Client::new(service, "ops"), "ops");
    let mut one = Election::new(api, "parovoz-operator".into(), "one".into());
    let began = tokio::time::Instant::now();
    let lost = one.keep(&Health::default(), &Metrics::default()).await;
    assert!(matches!(lost, LeaderError::Late(_)));
    assert!(began.elapsed() <= RENEW_WITHIN + Duration::from_millis(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_finds_another_one_stops_at_once() {
    let api = FakeApi::default();
    let mut one = election(&api, "one");
    let (health, metrics) = (Health::default(), Metrics::default());
    one.acquire(&health, &metrics).await;
    let mut lease = api.get(PATH).unwrap();
    lease["spec"]["holderIdentity"] = json!("two");
    api.put(PATH, lease);
    assert!(matches!(one.keep(&health, &metrics).await, LeaderError::Taken(holder) if holder == "two"));
}

#[tokio::test]
async fn an_api_server_that_refuses_is_an_error_and_no_lease() {
    let api = FakeApi::default();
    api.interfere(|_| Some(failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")));
    assert!(election(&api, "one").round().await.is_err());
}

use super::*;

async fn refused(node: &Node, words: &str) {
    eventually(&format!("it is refused: {words}"), || {
        let status = node.follower.as_ref().unwrap().status();
        status.phase == SessionPhase::Refused && status.reason.contains(words)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_another_store_is_refused() {
    let a = primary().await;
    let mut b = Node::with(2, StoreUid("other".to_owned()), Settings::default(), Tuning::default()).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    refused(&b, "belongs to store").await;
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_leads_to_another_member_is_refused() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    let wrong = Endpoint { data_uuid: Some(member(9)), ..a.endpoint() };
    b.follow(&reign(1), wrong, &a.endpoint());
    refused(&b, "expected was").await;
    // The right one works at once, without a restart.
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_follow_each_other_are_refused() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    let mut c = Node::new(3).await;
    b.follow(&reign(1), a.endpoint(), &a.endpoint());
    b.equals(&a, "data").await;
    c.follow(&reign(1), b.endpoint(), &a.endpoint());
    c.equals(&a, "data").await;
    b.follow(&reign(1), c.endpoint(), &a.endpoint());
    eventually("the cycle is refused", || b.follower.as_ref().unwrap().status().reason.contains("cycle")).await;
    b.shut().await;
    c.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_of_an_older_reign_is_not_followed_and_a_newer_one_is_promised_first() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    b.follow(&reign(2), a.endpoint(), &a.endpoint());
    eventually("the older reign is refused", || b.follower.as_ref().unwrap().status().reason.contains("newer")).await;
    assert!(b.store.prefix_by_uuid(uuid_of("data")).is_none(), "nothing was taken");
    a.lead(&reign(3));
    b.equals(&a, "data").await;
    assert_eq!(b.hooks.promised.lock().as_slice(), [reign(3)]);
    b.shut().await;
    a.shut().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_without_a_port_is_a_configuration_error() {
    let a = primary().await;
    let mut b = Node::new(2).await;
    b.follow(&reign(1), Endpoint { replication: "nowhere".to_owned(), ..Endpoint::default() }, &a.endpoint());
    refused(&b, "not host:port").await;
    b.shut().await;
    a.shut().await;
}

//! Listings: a stored `Link` is served only while it is true.

use crate::support::{Client, GitHub, Tap};

async fn listing(items: usize) -> (GitHub, Tap, Client) {
    let github = GitHub::start().await;
    github.list("/repos/o/r/issues", items);
    let tap = Tap::start(&github, &[]).await;
    let client = Client::connect(&tap).await;
    (github, tap, client)
}

/// Waits until a confirmation is no longer good for others.
async fn until_forgotten() {
    tokio::time::sleep(std::time::Duration::from_millis(5_200)).await;
}

const ALL: &str = "/repos/o/r/issues";

#[tokio::test]
async fn an_unchanged_listing_is_free_from_the_second_time_on() {
    let (github, _tap, mut client) = listing(90).await;
    for page in [ALL, "/repos/o/r/issues?page=2", "/repos/o/r/issues?page=3"] {
        assert_eq!(client.get(page, "a", &[]).await.json().as_array().unwrap().len(), 30);
    }
    let first = github.charged();
    assert_eq!(first, 3);
    for page in [ALL, "/repos/o/r/issues?page=2", "/repos/o/r/issues?page=3"] {
        let reply = client.get(page, "a", &[]).await;
        assert_eq!((reply.status, reply.x_cache()), (200, "ONLINE_HIT"));
    }
    assert_eq!(github.charged(), first, "the page after the last is empty, and that is free to ask");
    // One confirmation serves all pages: three revalidations, the last page, and the one after it.
    let asked = github.arrived().len() - 3;
    assert_eq!(asked, 3 + 2);
}

#[tokio::test]
async fn a_page_that_appears_is_seen() {
    let (github, _tap, mut client) = listing(30).await;
    let one = client.get(ALL, "a", &[]).await;
    assert_eq!(one.field("link"), None);
    assert_eq!(client.get(ALL, "a", &[]).await.x_cache(), "ONLINE_HIT");
    until_forgotten().await;
    // The first page stays the same to the byte; GitHub would say 304.
    github.list("/repos/o/r/issues", 31);
    let two = client.get(ALL, "a", &[]).await;
    assert_eq!(two.body, one.body);
    assert!(two.field("link").unwrap().contains("page=2>; rel=\"next\""));
    // And a third, behind a full second.
    github.list("/repos/o/r/issues", 60);
    client.get("/repos/o/r/issues?page=2", "a", &[]).await;
    client.get(ALL, "a", &[]).await;
    until_forgotten().await;
    github.list("/repos/o/r/issues", 61);
    let three = client.get(ALL, "a", &[]).await;
    assert!(three.field("link").unwrap().contains("page=3>; rel=\"last\""));
}

#[tokio::test]
async fn a_page_that_goes_away_is_seen() {
    // As PyGithub's totalCount asks: one item a page, the count is the number of the last page.
    let (github, _tap, mut client) = listing(5).await;
    let count = "/repos/o/r/issues?per_page=1";
    assert!(client.get(count, "a", &[]).await.field("link").unwrap().contains("page=5>; rel=\"last\""));
    assert!(client.get(count, "a", &[]).await.field("link").unwrap().contains("page=5>; rel=\"last\""));
    let charged = github.charged();
    until_forgotten().await;
    client.get(count, "a", &[]).await;
    assert_eq!(github.charged(), charged, "unchanged, it is free");
    until_forgotten().await;
    github.list("/repos/o/r/issues", 4);
    assert!(client.get(count, "a", &[]).await.field("link").unwrap().contains("page=4>; rel=\"last\""));
}

#[tokio::test]
async fn anonymous_clients_get_a_true_listing_too() {
    let (github, _tap, mut client) = listing(30).await;
    client.get(ALL, "", &[]).await;
    github.list("/repos/o/r/issues", 31);
    let reply = client.get(ALL, "", &[]).await;
    assert!(reply.field("link").unwrap().contains("page=2>; rel=\"next\""));
    assert!(github.arrived().iter().all(|a| a.headers.get("if-none-match").is_none()), "a 304 would cost as much");
}

#[tokio::test]
async fn a_listing_that_is_not_full_needs_no_confirmation() {
    let (github, _tap, mut client) = listing(3).await;
    client.get(ALL, "a", &[]).await;
    client.get(ALL, "a", &[]).await;
    assert_eq!(github.arrived().len(), 2);
}

#[tokio::test]
async fn a_confirmation_is_of_one_credential_and_from_before_no_write() {
    let (github, _tap, mut client) = listing(30).await;
    client.get(ALL, "a", &[]).await;
    client.get(ALL, "a", &[]).await;
    github.list("/repos/o/r/issues", 31);
    let other = client.get(ALL, "b", &[]).await;
    assert!(other.field("link").is_some());
    github.list("/repos/o/r/pulls", 30);
    client.get("/repos/o/r/pulls", "a", &[]).await;
    client.get("/repos/o/r/pulls", "a", &[]).await;
    client.request("POST", "/repos/o/r/pulls", "a", &[], b"{}").await;
    github.list("/repos/o/r/pulls", 31);
    assert!(client.get("/repos/o/r/pulls", "a", &[]).await.field("link").is_some());
}

#[tokio::test]
async fn a_client_whose_own_copy_is_current_gets_githubs_304() {
    let (github, _tap, mut client) = listing(60).await;
    let tag = client.get(ALL, "a", &[]).await.field("etag").unwrap().to_owned();
    github.arrived();
    assert_eq!(client.get(ALL, "a", &[("If-None-Match", &tag)]).await.status, 304);
    assert_eq!(github.arrived().len(), 1);
}
